<?php

declare(strict_types=1);

namespace Tests;

/** nginx from the system before a php-fpm of ours, on a Unix socket, with a document root of its own. */
final class Nginx
{
    public readonly string $root;
    private readonly string $directory;
    private Process $process;

    public function __construct(Fpm $fpm)
    {
        $this->directory = $directory = sys_get_temp_dir() . '/realtime-nginx-' . bin2hex(random_bytes(4));
        $this->root = "$directory/root";
        mkdir($directory);
        mkdir($this->root);
        $user = posix_geteuid() === 0 ? 'user root;' : '';
        $temporary = implode("\n", array_map(fn ($what) => "{$what}_temp_path $directory/$what;", ['client_body', 'proxy', 'fastcgi', 'uwsgi', 'scgi']));
        file_put_contents("$directory/nginx.conf", <<<NGINX
            $user
            daemon off;
            worker_processes 1;
            pid $directory/nginx.pid;
            error_log $directory/error.log;
            events {}
            http {
                access_log off;
                $temporary
                server {
                    listen unix:$directory/http.sock;
                    root $this->root;
                    location / {
                        include /etc/nginx/fastcgi_params;
                        fastcgi_param SCRIPT_FILENAME \$document_root\$uri;
                        fastcgi_pass unix:{$fpm->socket()};
                    }
                }
            }
            NGINX);
        $this->process = new Process([self::binary(), '-c', "$directory/nginx.conf", '-e', "$directory/error.log"]);
        eventually(
            fn () => $this->process->running() ? @stream_socket_client("unix://$directory/http.sock") : throw new Failed($this->process->errors()),
            'nginx listens',
        );
    }

    public function __destruct()
    {
        $this->process->signal(SIGTERM);
        $this->process->wait();
        exec('rm -r ' . escapeshellarg($this->directory));
    }

    public static function binary(): string
    {
        return is_executable('/usr/sbin/nginx') ? '/usr/sbin/nginx' : throw new Failed('there is no nginx; on Debian: apt-get install nginx');
    }

    /** Puts a script into the document root. */
    public function script(string $name, string $code): void
    {
        file_put_contents("$this->root/$name", "<?php\n$code");
    }

    /** GETs a path: status and body. */
    public function get(string $path): array
    {
        return $this->finish($this->begin($path));
    }

    /** Sends the request and does not wait for its answer. @return resource */
    public function begin(string $path)
    {
        $stream = stream_socket_client("unix://$this->directory/http.sock");
        stream_set_timeout($stream, (int) DEADLINE_S);
        fwrite($stream, "GET $path HTTP/1.0\r\nHost: localhost\r\n\r\n");
        return $stream;
    }

    /** The answer to what `begin()` sent. @param resource $stream */
    public function finish($stream): array
    {
        [$head, $body] = explode("\r\n\r\n", (string) stream_get_contents($stream), 2) + ['', ''];
        check(preg_match('~^HTTP/1\.\d (\d+)~', $head, $match) === 1, "no answer: $head");
        return [(int) $match[1], $body];
    }
}
