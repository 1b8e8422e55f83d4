FROM nginx:1.29
WORKDIR usr/share/nginx/html
COPY public .
