<?php

declare(strict_types=1);

namespace Realtime\Laravel\Console;

use Illuminate\Contracts\Cache\Repository;
use Throwable;

/** How `realtime:restart` reaches the hubs of `realtime:serve`, on whatever host: a key in the cache. */
final class RestartSignal
{
    private const KEY = 'realtime-php:restart';

    private mixed $seen;
    private float $lookedAt;

    public function __construct(private Repository $cache, private float $everySeconds)
    {
        $this->seen = $this->look();
        $this->lookedAt = microtime(true);
    }

    public static function send(Repository $cache): void
    {
        $cache->forever(self::KEY, microtime(true));
    }

    /** Whether somebody asked since this object was made. */
    public function wasAsked(): bool
    {
        if (microtime(true) - $this->lookedAt < $this->everySeconds) {
            return false;
        }
        $this->lookedAt = microtime(true);

        return $this->look() !== $this->seen;
    }

    private function look(): mixed
    {
        try {
            return $this->cache->get(self::KEY);
        } catch (Throwable) {
            // A cache that is away restarts nothing.
            return $this->seen ?? null;
        }
    }
}
