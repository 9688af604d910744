<?php

declare(strict_types=1);

namespace Realtime\Laravel\Console;

use Illuminate\Contracts\Cache\Repository;
use Throwable;

/** How `realtime:restart` reaches hubs and workers, on whatever host: a key in the cache. */
final class RestartSignal
{
    public const KEY = 'realtime-php:restart';
    /** That of `queue:restart`. */
    public const QUEUE_KEY = 'illuminate:queue:restart';

    private mixed $seen = null;
    private float $lookedAt;

    /** @param list<string> $keys those that are looked at */
    public function __construct(private Repository $cache, private float $everySeconds, private array $keys = [self::KEY])
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

        $now = $this->look();
        // If the cache was away so far, what it says now may be old.
        $this->seen ??= $now;

        return $now !== $this->seen;
    }

    private function look(): mixed
    {
        try {
            return array_map(fn (string $key) => $this->cache->get($key), $this->keys);
        } catch (Throwable) {
            // A cache that is away restarts nothing.
            return $this->seen;
        }
    }
}
