"""``python -m napari_isdnet``, for where the folder of ``napari-isdnet`` is on no search path."""

from napari_isdnet.cli import main

if __name__ == "__main__":
    main()
