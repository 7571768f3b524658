"""What setup.cfg cannot say: the configs lie in the top-level folder and are installed inside the package."""

from setuptools import find_packages, setup

setup(
    packages=[*find_packages(include=['kcd_jax*']), 'kcd_jax.configs'],
    package_dir={'kcd_jax.configs': 'configs'},
)
