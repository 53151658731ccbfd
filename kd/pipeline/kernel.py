"""The kernel of a stage's notebook, which ends when the stage does, however that ends: `python -m kd.pipeline.kernel -f FILE`."""

from kd.processes import end_with_parent

if __name__ == "__main__":
    end_with_parent()
    from ipykernel import kernelapp

    kernelapp.launch_new_instance()
