FROM debian:13
USER root
RUN make install
USER app
