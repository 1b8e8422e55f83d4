FROM debian:13
USER app
RUN sudo make install
