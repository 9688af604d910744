<?php

declare(strict_types=1);

namespace Tests;

/** A php-fpm of our own, on a Unix socket, with the extension and opcache. */
final class Fpm
{
    public readonly string $directory;
    /** The master, or what has become the master where it is a daemon. */
    private Process $process;
    private bool $stopped = false;
    /** Its workers, where it was killed and could not end them. */
    private array $orphans = [];

    /** As a daemon its master is nobody's child, and another process after each reload. */
    public function __construct(array $options = [], int $children = 2, string $pool = '', private readonly bool $daemon = false)
    {
        $this->directory = sys_get_temp_dir() . '/realtime-fpm-' . getmypid() . '-' . bin2hex(random_bytes(4));
        mkdir($this->directory);
        $root = posix_geteuid() === 0;
        file_put_contents("$this->directory/fpm.conf", implode("\n", [
            '[global]', "error_log = $this->directory/fpm.log", "pid = $this->directory/fpm.pid", 'daemonize = ' . ($daemon ? 'yes' : 'no'),
            '[www]', $root ? "user = root\ngroup = root" : '', "listen = $this->directory/fpm.sock", 'pm = static',
            "pm.max_children = $children", 'catch_workers_output = yes', $pool, '',
        ]));
        $foreground = $daemon ? [] : ['-F'];
        $this->process = new Process([self::binary(), ...php_options(), ...$options, ...($root ? ['-R'] : []), ...$foreground, '-y', "$this->directory/fpm.conf"]);
        $daemon && $this->process->output();
        eventually(
            fn () => $daemon || $this->process->running() ? @stream_socket_client("unix://$this->directory/fpm.sock") : throw new Failed($this->log()),
            'php-fpm listens',
        );
    }

    public function __destruct()
    {
        $this->stop(SIGTERM);
        array_map(fn ($worker) => posix_kill($worker, SIGKILL), $this->orphans);
        array_map('unlink', glob("$this->directory/*"));
        rmdir($this->directory);
    }

    /** The master's process. */
    public function pid(): int
    {
        return $this->daemon ? (int) eventually(fn () => @file_get_contents("$this->directory/fpm.pid"), 'the daemon has a pid file') : $this->process->pid();
    }

    /** Ends it; returns once the master and its workers have gone. */
    public function stop(int $signal): void
    {
        if ($this->stopped) {
            return;
        }
        $this->stopped = true;
        $this->orphans = $signal === SIGKILL ? children($this->pid()) : [];
        $this->signal($signal);
        $this->daemon || $this->process->wait();
        eventually(fn () => processes("$this->directory/fpm.conf") === [], 'php-fpm has gone');
    }

    /** The socket on which the workers answer FastCGI. */
    public function socket(): string
    {
        return "$this->directory/fpm.sock";
    }

    /** To the master. */
    public function signal(int $signal): void
    {
        posix_kill($this->pid(), $signal);
    }

    public static function binary(): string
    {
        $version = PHP_MAJOR_VERSION . '.' . PHP_MINOR_VERSION;
        foreach ([dirname(PHP_BINARY, 2) . '/sbin/php-fpm', "/usr/sbin/php-fpm$version"] as $path) {
            if (is_executable($path)) {
                return $path;
            }
        }
        throw new Failed("there is no php-fpm $version; on Debian: apt-get install php$version-fpm");
    }

    /** Tests the configuration, as `systemctl reload` does before it reloads. */
    public static function checkConfiguration(array $options): Process
    {
        $file = tempnam(sys_get_temp_dir(), 'realtime');
        file_put_contents($file, "[global]\nerror_log = /dev/stderr\n[www]\nlisten = $file.sock\npm = static\npm.max_children = 1\nuser = nobody\n");
        $process = new Process([self::binary(), ...php_options(), ...$options, '-t', '-y', $file]);
        $process->wait();
        unlink($file);
        return $process;
    }

    public function log(): string
    {
        return (string) @file_get_contents("$this->directory/fpm.log") . $this->process->errors();
    }

    /** Waits until the log has the text: the master writes what workers say, when it comes to it. */
    public function logged(string $text): void
    {
        eventually(fn () => str_contains($this->log(), $text), "the log has $text");
    }

    /** Runs a script in a worker; the response's body. */
    public function request(string $script, string $query = ''): string
    {
        $stream = stream_socket_client("unix://$this->directory/fpm.sock");
        stream_set_timeout($stream, (int) DEADLINE_S);
        $parameters = '';
        foreach (['SCRIPT_FILENAME' => $script, 'REQUEST_METHOD' => 'GET', 'QUERY_STRING' => $query, 'SERVER_PROTOCOL' => 'HTTP/1.1'] as $name => $value) {
            $parameters .= pack('NN', strlen($name) | 0x80000000, strlen($value) | 0x80000000) . $name . $value;
        }
        $record = fn (int $type, string $body) => pack('CCnnCC', 1, $type, 1, strlen($body), 0, 0) . $body;
        fwrite($stream, $record(1, pack('nCx5', 1, 0)) . $record(4, $parameters) . $record(4, '') . $record(5, ''));
        $output = '';
        while (strlen($head = (string) stream_get_contents($stream, 8)) === 8) {
            ['type' => $type, 'length' => $length, 'padding' => $padding] = unpack('Cversion/Ctype/nid/nlength/Cpadding/Creserved', $head);
            $body = $length + $padding > 0 ? stream_get_contents($stream, $length + $padding) : '';
            if ($type === 6 || $type === 7) {
                $output .= substr($body, 0, $length);
            }
            if ($type === 3) {
                return explode("\r\n\r\n", $output, 2)[1] ?? $output;
            }
        }
        throw new Failed('php-fpm gave no answer: ' . $this->log());
    }
}
