<?php

declare(strict_types=1);

namespace Tests;

/** The program `realtime serve` on a free port and a bus socket of its own. */
final class Hub
{
    public readonly string $url;
    public readonly string $socket;
    private Process $process;

    /** @param array<string, string> $settings by their names in the environment, without REALTIME_ */
    public function __construct(array $settings = [], ?string $socket = null)
    {
        $this->socket = $socket ?? getenv('REALTIME_SOCKET');
        $empty = getenv('TEST_DIRECTORY') . '/realtime.toml';
        touch($empty);
        $environment = ['REALTIME_CONFIG' => $empty, 'REALTIME_SOCKET' => $this->socket];
        foreach ($settings + ['LISTEN' => '127.0.0.1:0', 'SHARDS' => '2', 'APPS' => json_encode([['name' => 'default', 'id' => '3', 'key' => KEY, 'secret' => SECRET]])] as $name => $value) {
            $environment["REALTIME_$name"] = $value;
        }
        $this->process = new Process([getenv('TEST_PROGRAM'), 'serve'], $environment);
        $this->url = $this->process->expect('~listens on (ws://[^\s,]+)~')[1];
    }

    /** Host and port. */
    public function address(): string
    {
        return parse_url($this->url, PHP_URL_HOST) . ':' . parse_url($this->url, PHP_URL_PORT);
    }

    public function signal(int $signal): void
    {
        $this->process->signal($signal);
    }

    public function pid(): int
    {
        return $this->process->pid();
    }

    /** Makes it stand still; returns once every thread of it does. */
    public function freeze(): void
    {
        $this->signal(SIGSTOP);
        eventually(function () {
            foreach (glob("/proc/{$this->pid()}/task/*/stat") as $thread) {
                if (!str_contains((string) @file_get_contents($thread), ') T ')) {
                    return false;
                }
            }

            return true;
        }, 'the hub stood still');
    }

    public function stop(): int
    {
        if ($this->process->running()) {
            $this->process->signal(SIGTERM);
        }

        return $this->process->wait();
    }
}

/** Runs the body with a hub, and ends it. */
function with_program(callable $body, array $settings = []): void
{
    $hub = new Hub($settings);
    try {
        $body($hub);
    } finally {
        $hub->stop();
    }
}
