<?php

declare(strict_types=1);

namespace Tests;

/** A site of which nobody has started the hub: nginx and a php-fpm whose workers may (`realtime.autospawn`). */
final class Site
{
    public readonly string $socket;
    public readonly Fpm $fpm;
    public readonly Nginx $nginx;

    /** @param array<string, string> $settings of php.ini */
    public function __construct(array $settings = [], int $children = 4, string $pool = '', bool $daemon = false)
    {
        $this->socket = $settings['realtime.socket'] ?? socket_path();
        $settings += ['realtime.autospawn' => '1', 'realtime.socket' => $this->socket, 'realtime.listen' => '127.0.0.1:0', 'log_errors' => '1'];
        $options = array_merge(...array_map(fn ($name, $value) => ['-d', "$name=$value"], array_keys($settings), $settings));
        $this->fpm = new Fpm($options, $children, "clear_env = yes\n$pool", $daemon);
        $this->nginx = new Nginx($this->fpm);
        // What is asked on the same connection is answered when the broadcast has been carried out.
        $this->nginx->script('send.php', "broadcast('page', \$_GET['text']); try { Realtime\\stats(); } catch (Realtime\Exception\RealtimeException) {} echo getmypid();");
        $this->nginx->script('publish.php', "try { echo Realtime\\publish('page', \$_GET['text'])->matched; } catch (Throwable \$e) { echo get_class(\$e), ' ', \$e->getMessage(); }");
    }

    /** The path of the program that is beside the extension. */
    public static function program(): string
    {
        return dirname((string) getenv('TEST_EXTENSION')) . '/realtime';
    }

    /** Has a worker broadcast; its process. */
    public function send(string $text): int
    {
        [$status, $worker] = $this->nginx->get('/send.php?text=' . urlencode($text));
        same(200, $status, $worker);
        return (int) $worker;
    }

    /** Has a worker publish: to how many, or why not. */
    public function publish(string $text): string
    {
        [$status, $answer] = $this->nginx->get('/publish.php?text=' . urlencode($text));
        same(200, $status, $answer);
        return $answer;
    }

    /** The processes that are, or are about to be, the hub of this site. */
    public function hubs(): array
    {
        return processes("--socket $this->socket");
    }

    /** What the hub says of itself, once it answers. */
    public function hub(): array
    {
        return eventually(function () {
            $process = new Process([self::program(), 'status', '--json', '--socket', $this->socket, '--config', '/dev/null']);
            return $process->wait() === 0 ? json_decode($process->written(), true, flags: JSON_THROW_ON_ERROR) : null;
        }, 'the hub answers');
    }

    /** Waits until no hub is left. */
    public function left(): void
    {
        eventually(fn () => $this->hubs() === [], 'the hub has left');
        check(!file_exists($this->socket), 'its socket has gone');
    }
}
