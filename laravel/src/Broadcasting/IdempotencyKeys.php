<?php

declare(strict_types=1);

namespace Realtime\Laravel\Broadcasting;

/**
 * Keys that make the retry of a queued job publish nothing twice.
 *
 * A job that had reached some of its channels when it failed sends the same again, and the hub
 * knows it by the key: the job's uuid, which call of the job this is, and what it says.
 */
final class IdempotencyKeys
{
    /** @var list<array{string, int}> uuid and calls so far of the jobs under way, the innermost last */
    private array $jobs = [];

    public function begin(?string $uuid): void
    {
        $this->jobs[] = [(string) $uuid, 0];
    }

    public function end(): void
    {
        array_pop($this->jobs);
    }

    public function next(string $event, string $json): ?string
    {
        $last = array_key_last($this->jobs);
        if ($last === null || $this->jobs[$last][0] === '') {
            return null;
        }
        [$uuid, $call] = $this->jobs[$last];
        $this->jobs[$last][1]++;

        return "$uuid-$call-" . hash('xxh64', "$event\0$json");
    }
}
