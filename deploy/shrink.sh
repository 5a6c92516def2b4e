#!/bin/sh
# shrink.sh SITE_PACKAGES: removes from an image's packages what its processes never run.
set -eu
cd "$1"
# headrace has no tests, and its C++ is compiled where it runs.
find . -path ./headrace -prune -o -type d \( -name tests -o -name test \) -prune -exec rm -rf {} +
find . -path ./headrace -prune -o -type f \( -name '*.a' -o -name '*.h' -o -name '*.hpp' -o -name '*.cuh' -o -name '*.c' \
  -o -name '*.pyi' -o -name '*.pyx' -o -name '*.pxd' \) -exec rm {} +
rm -rf torch/bin/protoc* torch/include torch/share
# Of telephone numbers, the towns and the networks; of AWS, every service but S3 and what signs in to it.
rm -rf phonenumbers/geodata phonenumbers/carrierdata
[ ! -d botocore/data ] || find botocore/data -mindepth 1 -maxdepth 1 -type d ! -name s3 ! -name sts ! -name 'sso*' \
  ! -name signin -exec rm -rf {} +
# Symbols for debuggers are a fifth of the libraries.
find . -type f -name '*.so*' -exec strip --strip-unneeded {} +
