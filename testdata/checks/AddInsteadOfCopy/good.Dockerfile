FROM debian:13
COPY src /src
ADD rootfs.tar.xz /
