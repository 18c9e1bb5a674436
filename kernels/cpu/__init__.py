NAME = "cpu"


def require():
    raise ImportError("not built")
