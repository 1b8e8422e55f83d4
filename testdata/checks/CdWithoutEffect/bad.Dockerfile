FROM debian:13
RUN cd /src
RUN make
