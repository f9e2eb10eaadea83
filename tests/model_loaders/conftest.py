from support.tiny_stack import cast, inference_mode, tiny_files  # noqa: F401
