<?php

declare(strict_types=1);

namespace Realtime\Laravel\Console;

use Illuminate\Console\Command;
use Realtime\Exception\RealtimeException;

/** Runs the hub in the foreground: inside this process with the extension, else the program `realtime`. */
class ServeCommand extends Command
{
    use EndsOnSignals;

    protected $signature = 'realtime:serve
        {--listen= : Address and port for clients, 127.0.0.1:8080 for example}
        {--binary=realtime : The program, where the extension is missing}';

    protected $description = 'Run the realtime hub until it is told to stop';

    private const TURN_US = 100_000;

    private StatusLine $status;
    /** How many publications there were when it was drawn last. */
    private int $published = 0;

    public function handle(): int
    {
        $config = $this->laravel['config']['realtime'];
        $server = ServerConfig::from($config, $this->laravel['config']['app.url'] ?? null);
        if ($this->option('listen')) {
            $server['listen'] = $this->option('listen');
        }
        $this->endOnSignals();
        $restart = new RestartSignal($this->laravel['cache.store'], (float) ($config['restart_check_seconds'] ?? 5));

        return extension_loaded('realtime') ? $this->serveHere($server, $restart) : $this->serveWithProgram($server, $restart);
    }

    private function serveHere(array $server, RestartSignal $restart): int
    {
        try {
            $hub = \Realtime\start($server);
        } catch (RealtimeException $e) {
            $this->error($e->getMessage());

            return 1;
        }
        $this->announce($hub->url);
        $this->status = new StatusLine($this->output);
        while (!$this->stop && $hub->isRunning() && !$restart->wasAsked()) {
            usleep(self::TURN_US);
            $this->draw();
        }
        $this->leave($restart);

        return $hub->stop() ? 0 : 1;
    }

    private function serveWithProgram(array $server, RestartSignal $restart): int
    {
        $environment = ServerConfig::environment($server) + array_filter(getenv(), fn ($name) => !str_starts_with($name, 'REALTIME_'), ARRAY_FILTER_USE_KEY);
        $process = @proc_open([$this->option('binary'), 'serve'], [['file', '/dev/null', 'r'], STDOUT, STDERR], $pipes, null, $environment);
        if ($process === false) {
            $this->error("Neither the PHP extension \"realtime\" nor the program {$this->option('binary')} is installed; --binary names another place.");

            return 1;
        }
        while (($status = proc_get_status($process))['running'] && !$this->stop && !$restart->wasAsked()) {
            usleep(self::TURN_US);
        }
        if ($status['running']) {
            $this->leave($restart);
            proc_terminate($process, 15);
            while (($status = proc_get_status($process))['running']) {
                usleep(self::TURN_US);
            }
        }

        return $status['exitcode'];
    }

    private function announce(string $url): void
    {
        $this->info("Realtime hub on $url");
        $this->line('Stop it with Ctrl-C, restart it with `php artisan realtime:restart`.');
    }

    private function leave(RestartSignal $restart): void
    {
        isset($this->status) && $this->status->end();
        $this->line($this->stop ? 'Stopping: what was accepted goes out.' : 'Restart asked for: stopping, so that a supervisor starts it again.');
    }

    /** One line that counts, on a terminal. */
    private function draw(): void
    {
        $this->status->draw(function (float $elapsed): string {
            $stats = \Realtime\stats();
            $rate = $elapsed > 0 ? ($stats['published'] - $this->published) / $elapsed : 0;
            $this->published = $stats['published'];

            return sprintf(
                '%d connections · %d channels · %d subscriptions · %d published (%.0f/s)',
                $stats['connections'], $stats['channels'], $stats['subscriptions'], $stats['published'], $rate,
            );
        });
    }
}
