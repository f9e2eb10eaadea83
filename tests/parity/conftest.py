from support.tiny_stack import inference_mode  # noqa: F401
