from support.tiny_stack import cast, inference_mode, shot, stack, tiny_files  # noqa: F401
