"""``python -m napari_isdnet_training``, for where the folder of ``isdnet-train`` is on no search path."""

from napari_isdnet_training.cli import main

if __name__ == "__main__":
    main()
