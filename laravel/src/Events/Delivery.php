<?php

declare(strict_types=1);

namespace Realtime\Laravel\Events;

/** How an event of the hub came here. */
final class Delivery
{
    /**
     * @param int    $atMs    when it happened, in milliseconds since 1970
     * @param string $app     the hub's app; empty is the default one
     * @param int    $number  by which a repeat is told. It counts from 0 in each hub and with each of its starts
     * @param int    $attempt above 1 if it was given out before and not acknowledged
     * @param int    $dropped how many events the hub had no room for since it last gave one out
     */
    public function __construct(
        public readonly int $atMs = 0,
        public readonly string $app = '',
        public readonly int $number = 0,
        public readonly int $attempt = 1,
        public readonly int $dropped = 0,
    ) {}
}
