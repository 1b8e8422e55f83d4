FROM debian:13
COPY server /usr/bin/
CMD ["server"]
