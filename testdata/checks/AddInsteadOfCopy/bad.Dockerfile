FROM debian:13
ADD src /src
