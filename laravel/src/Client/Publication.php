<?php

declare(strict_types=1);

namespace Realtime\Laravel\Client;

/** A message on its way: checked, encoded, with the channel or the user that it goes to. */
final class Publication
{
    public const TEXT = 0;
    public const JSON = 1;
    public const BINARY = 2;

    /** @param list<string> $except socket ids that do not get it */
    public function __construct(
        public readonly string $target,
        public readonly bool $toUser,
        public readonly string $event,
        /** One of the constants above. */
        public readonly int $kind,
        public readonly string $body,
        public readonly array $except = [],
        /** Idempotency key. */
        public readonly ?string $id = null,
    ) {}

    /** The body as the JSON text of its value, as clients of Pusher's protocol get it. */
    public function json(): string
    {
        return $this->kind === self::JSON ? $this->body : Message::encode($this->body);
    }
}
