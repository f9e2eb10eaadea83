from support.tiny_stack import inference_mode, tiny_files  # noqa: F401
