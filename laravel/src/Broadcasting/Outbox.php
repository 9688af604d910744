<?php

declare(strict_types=1);

namespace Realtime\Laravel\Broadcasting;

use Illuminate\Broadcasting\BroadcastEvent;
use Illuminate\Contracts\Broadcasting\Factory;
use Illuminate\Contracts\Debug\ExceptionHandler;
use Illuminate\Contracts\Foundation\Application;
use Throwable;

/**
 * Events that go out from the process that fired them, once what they tell is true.
 *
 * Inside a database transaction an event waits for the commit and is gone with a rollback. Outside
 * of one it waits for the end of the job, or until the request's response has been sent, and is gone
 * if that fails. A commit sends what waited before it as well, because that is as true and must not
 * be overtaken. In a command that is not a job nobody says when it ends well, so events outside of
 * transactions go out at once.
 *
 * By then the data has been stored, so an outage of the hub is reported and fails nothing.
 */
class Outbox
{
    /** Held events; past it a request or job sends what it has. */
    private const MAX_HELD = 1_000;

    /** @var array<int, BroadcastEvent> what waits, by its number in the order of firing */
    private array $held = [];

    /** @var list<int> the number that was next when each open request or job began */
    private array $scopes = [];

    private int $next = 0;

    /** A transaction's callbacks are running; they may come in another order than the events. */
    private bool $committing = false;

    /** What is held has only the response to wait for. */
    private bool $due = false;

    /** Whose events are due: in a worker that serves many requests, that of the last one. */
    private static ?self $unsent = null;

    private static bool $sendsAtShutdown = false;

    public function __construct(private Application $app) {}

    /** A request or a job begins. */
    public function begin(): void
    {
        // Of a request that was not terminated; a worker has emptied its application by now.
        self::$unsent?->flush($this->app);
        $this->committed();
        $this->scopes[] = $this->next;
    }

    /** It ended well: what it held goes out, or becomes what the surrounding one holds. */
    public function commit(): void
    {
        $this->committed();
        array_pop($this->scopes);
        if ($this->scopes === []) {
            $this->flush();
        }
    }

    /** A request ended well: what it held goes out when its response has. Unit tests look before that. */
    public function commitAfterResponse(): void
    {
        if ($this->app->runningUnitTests()) {
            $this->commit();

            return;
        }
        $this->committed();
        array_pop($this->scopes);
        if ($this->scopes !== [] || $this->held === []) {
            return;
        }
        self::$unsent?->flush($this->app);
        $this->due = true;
        self::$unsent = $this;
        // Not everybody's index.php terminates its kernel.
        if (!self::$sendsAtShutdown) {
            self::$sendsAtShutdown = true;
            register_shutdown_function(static fn () => self::$unsent?->responded());
        }
    }

    /** The response has been sent. */
    public function responded(): void
    {
        if ($this->due) {
            $this->flush();
        }
    }

    /** It failed: what it held and has not sent is dropped. */
    public function rollBack(): void
    {
        $this->committed();
        $begin = array_pop($this->scopes) ?? 0;
        $this->held = array_filter($this->held, fn (int $number) => $number < $begin, ARRAY_FILTER_USE_KEY);
    }

    /** An event was fired. */
    public function add(BroadcastEvent $event): void
    {
        $number = $this->next++;
        if (!$this->app->bound('db.transactions')) {
            $this->hold($number, $event);

            return;
        }
        // Runs at once when no transaction is open.
        $waited = false;
        $this->app->make('db.transactions')->addCallback(function () use ($number, $event, &$waited): void {
            if ($waited) {
                $this->committing = true;
            }
            $this->hold($number, $event);
        });
        $waited = true;
    }

    /** A transaction was committed, and its callbacks have run. */
    public function committed(): void
    {
        if ($this->committing) {
            $this->committing = false;
            $this->flush();
        }
    }

    private function hold(int $number, BroadcastEvent $event): void
    {
        $this->held[$number] = $event;
        if (!$this->committing && ($this->scopes === [] || count($this->held) >= self::MAX_HELD)) {
            $this->flush();
        }
    }

    private function flush(?Application $app = null): void
    {
        $app ??= $this->app;
        [$events, $this->held, $this->due] = [$this->held, [], false];
        if (self::$unsent === $this) {
            self::$unsent = null;
        }
        ksort($events);
        foreach ($events as $event) {
            try {
                $event->handle($app->make(Factory::class));
            } catch (Throwable $e) {
                $app->make(ExceptionHandler::class)->report($e);
            }
        }
    }
}
