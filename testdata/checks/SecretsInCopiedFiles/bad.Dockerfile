FROM node:24
COPY .npmrc /root/
RUN release
