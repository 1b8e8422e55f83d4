FROM debian:13
WORKDIR /src
RUN make
