FROM scratch
COPY ./forever/Dockerfile /
