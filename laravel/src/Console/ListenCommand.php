<?php

declare(strict_types=1);

namespace Realtime\Laravel\Console;

use Illuminate\Console\Command;
use Illuminate\Contracts\Debug\ExceptionHandler;
use Realtime\Exception\RealtimeException;
use Realtime\Laravel\Client\Events;
use Realtime\Laravel\Events\Factory;
use Realtime\Laravel\RealtimeServiceProvider;
use Realtime\Laravel\Testing\RealtimeFake;
use Throwable;

/**
 * Turns what happens on the hub (`hooks.events`) into events of the application, at least once each.
 *
 * An event is acknowledged when its listeners have returned or thrown. If this process dies before
 * that, another one gets it.
 */
class ListenCommand extends Command
{
    use EndsOnSignals;

    protected $signature = 'realtime:listen
        {--only= : Dispatch these alone, ChannelJoined,ChannelLeft for example, and let the others go unheard}
        {--max-jobs=0 : End after so many events; 0: never}
        {--max-time=0 : End after so many seconds; 0: never}
        {--memory=128 : End when this process uses so many megabytes; 0: never}';

    protected $description = 'Dispatch what happens on the hub, who joins and leaves for example, as events of the application';

    /** How long a question for an event waits, and a signal therefore at most. */
    private const TURN_MS = 400;
    private const FIRST_RETRY_S = 0.1;
    private const LAST_RETRY_S = 5.0;
    /** As of `queue:work`. */
    private const EXIT_MEMORY_LIMIT = 12;

    /** @var \Realtime\Events|Events */
    private \Iterator $events;
    private RestartSignal $restart;
    private StatusLine $status;
    /** @var array<class-string, true>|null what is dispatched; null: everything */
    private ?array $only = null;
    /** @var array{max-jobs: int, max-time: int, memory: int} */
    private array $limits;
    private float $startedAt;
    private int $dispatched = 0;
    private int $failed = 0;
    private int $dropped = 0;
    /** @var array<string, true> kinds that this package does not know */
    private array $unknown = [];
    /** Whether the hub answers; null: it has not been asked yet. */
    private ?bool $isThere = null;
    private float $retryS = self::FIRST_RETRY_S;

    public function handle(): int
    {
        $problem = $this->readOptions();
        if ($problem === null && $this->laravel->bound(RealtimeFake::class)) {
            $problem = 'Unit tests record instead of asking a hub (APP_ENV=testing, or realtime.fake): there is nothing to listen to.';
        }
        if ($problem !== null) {
            $this->error($problem);

            return 1;
        }
        $config = $this->laravel['config']['realtime'];
        $this->startedAt = microtime(true);
        $this->status = new StatusLine($this->output);
        $this->restart = new RestartSignal($this->laravel['cache.store'], (float) ($config['restart_check_seconds'] ?? 5), [RestartSignal::KEY, RestartSignal::QUEUE_KEY]);
        $this->endOnSignals();
        $direct = !extension_loaded('realtime') || ($config['transport'] ?? 'auto') !== 'auto';
        $this->events = $direct ? new Events(RealtimeServiceProvider::bus($config), self::TURN_MS) : \Realtime\events(self::TURN_MS);

        while (($end = $this->end()) === null) {
            try {
                $this->events->next();
            } catch (RealtimeException $e) {
                if (!$e->isRetryable()) {
                    $this->status->end();
                    $this->error($e->getMessage());

                    return 1;
                }
                $this->isAway($e);
                continue;
            }
            $this->isThere();
            if ($this->events->valid()) {
                $this->dispatch($this->events->current());
            }
            $this->status->draw(fn () => sprintf('%d events · %d failed · %d dropped by the hub', $this->dispatched, $this->failed, $this->dropped));
        }

        return $this->leave(...$end);
    }

    private function readOptions(): ?string
    {
        foreach (['max-jobs', 'max-time', 'memory'] as $name) {
            $value = (string) $this->option($name);
            if (!ctype_digit($value)) {
                return "--$name is a whole number, not $value.";
            }
            $this->limits[$name] = (int) $value;
        }
        $known = [];
        foreach (Factory::CLASSES as $kind => $class) {
            $known[$kind] = $known[class_basename($class)] = $class;
        }
        $names = array_filter(array_map('trim', explode(',', (string) $this->option('only'))), 'strlen');
        foreach ($names as $name) {
            $class = $known[class_basename($name)] ?? null;
            if ($class === null) {
                return "--only: there is no event $name; there are " . implode(', ', array_map('class_basename', Factory::CLASSES)) . '.';
            }
            $this->only[$class] = true;
        }

        return null;
    }

    /** @return array{int, string}|null exit status and reason, if it is time to end */
    private function end(): ?array
    {
        ['max-jobs' => $jobs, 'max-time' => $seconds, 'memory' => $megabytes] = $this->limits;

        return match (true) {
            $this->stop => [0, 'Told to stop.'],
            $megabytes > 0 && memory_get_usage(true) / 1024 / 1024 >= $megabytes => [self::EXIT_MEMORY_LIMIT, "Memory has reached $megabytes MB."],
            $this->restart->wasAsked() => [0, 'Restart asked for: stopping, so that a supervisor starts it again.'],
            $seconds > 0 && microtime(true) - $this->startedAt >= $seconds => [0, "$seconds seconds are over."],
            $jobs > 0 && $this->dispatched >= $jobs => [0, "$jobs events are done."],
            default => null,
        };
    }

    private function leave(int $status, string $reason): int
    {
        try {
            $this->events->done();
        } catch (RealtimeException) {
            // Without an answer it counts as not done, and comes again.
        }
        $this->status->end();
        $this->line($reason);

        return $status;
    }

    /** @param array<string, mixed> $happened as the hub says it */
    private function dispatch(array $happened): void
    {
        if ($happened['dropped'] > 0) {
            $this->dropped += $happened['dropped'];
            $this->status->end();
            $this->warn("The hub has dropped $happened[dropped] events: its queue was full. More workers are faster.");
        }
        $event = Factory::make($happened);
        if ($event === null) {
            isset($this->unknown[$happened['kind']]) || $this->warn("The hub tells of \"$happened[kind]\", which this version of the package does not know.");
            $this->unknown[$happened['kind']] = true;

            return;
        }
        if ($this->only !== null && !isset($this->only[$event::class])) {
            return;
        }
        $this->dispatched++;
        if ($this->output->isVerbose()) {
            $this->status->end();
            $this->line(class_basename($event) . ' ' . implode(' ', array_filter([$happened['channel'] ?? '', $happened['connection'] ?? '', $happened['user_id'] ?? ''], 'strlen')));
        }
        // One event's scoped services are none of the next one's.
        $this->laravel->forgetScopedInstances();
        try {
            $this->laravel['events']->dispatch($event);
        } catch (Throwable $e) {
            $this->failed++;
            $this->laravel->make(ExceptionHandler::class)->report($e);
        }
    }

    private function isThere(): void
    {
        if ($this->isThere !== true) {
            $this->status->end();
            $this->info($this->isThere === null ? 'Listening.' : 'The hub answers. Listening.');
            $this->isThere = true;
            $this->retryS = self::FIRST_RETRY_S;
        }
    }

    /** Says it once, and waits longer each time. A signal ends the wait. */
    private function isAway(RealtimeException $e): void
    {
        if ($this->isThere !== false) {
            $this->status->end();
            $this->warn("The hub does not answer ({$e->getMessage()}). Trying until it does.");
            $this->isThere = false;
        }
        usleep((int) ($this->retryS * 1e6));
        $this->retryS = min($this->retryS * 2, self::LAST_RETRY_S);
    }
}
