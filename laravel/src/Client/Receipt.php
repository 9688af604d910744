<?php

declare(strict_types=1);

namespace Realtime\Laravel\Client;

/** What became of a publication. Without the extension it is `Realtime\\Receipt` as well. */
final class Receipt
{
    public function __construct(
        /** False only while publishing is off or recorded. */
        public readonly bool $accepted,
        /** Which count `offset` belongs to; empty where the transport does not say. */
        public readonly string $epoch,
        /** Its number in the channel's order, from 1; 0 where the transport does not say. */
        public readonly int $offset,
        /** Subscriptions on this node to which it was queued. */
        public readonly int $matched,
    ) {}
}
