FROM debian:13
COPY server /usr/bin/
USER 1000:1000
CMD ["server"]
