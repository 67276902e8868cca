"""Puts the notebooks of examples/ into the site, which otherwise has what is below docs/ only."""

from pathlib import Path

from mkdocs.plugins import event_priority
from mkdocs.structure.files import File


@event_priority(100)  # before mkdocs-jupyter picks out the notebooks
def on_files(files, config):
    root = Path(config.config_file_path).parent
    for path in sorted(root.glob("examples/*.ipynb")):
        name = path.relative_to(root).as_posix()
        files.append(File(name, str(root), config.site_dir, config.use_directory_urls))
    return files
