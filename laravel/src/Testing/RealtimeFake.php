<?php

declare(strict_types=1);

namespace Realtime\Laravel\Testing;

use Illuminate\Broadcasting\Channel;
use Realtime\Laravel\Client\Message;
use Realtime\Testing\Fake;

/**
 * What the application would have sent, whether an event did it or a function of the extension:
 * channels by their full names (`private-orders.7`), messages as values.
 */
class RealtimeFake
{
    public function __construct(private Fake $fake) {}

    /**
     * What was recorded, oldest first, one entry a channel.
     *
     * @param Channel|string|null $channel
     *
     * @return list<array{channel: ?string, userId: ?string, event: string, message: mixed, except: string|array|null}>
     */
    public function recorded($channel = null): array
    {
        return array_map(function (array $record) {
            $isJson = ($record['options']['json'] ?? false) === true;

            return [
                'channel' => $record['channel'], 'userId' => $record['userId'], 'event' => $record['as'],
                'message' => $isJson ? json_decode($record['message'], true) : $record['message'],
                'except' => $record['options']['except'] ?? null,
            ];
        }, $channel === null ? $this->fake->recorded() : $this->fake->recorded((string) $channel));
    }

    /**
     * The frames that pusher-js and Echo would get on the channel, decoded once: `data` is the JSON
     * text that the client parses.
     *
     * @param Channel|string $channel
     *
     * @return list<array{event: string, channel: string, data: string}>
     */
    public function frames($channel): array
    {
        return array_map(
            fn (array $record) => ['event' => $record['event'], 'channel' => $record['channel'], 'data' => Message::encode($record['message'])],
            $this->recorded($channel),
        );
    }

    /**
     * A message went out on the channel.
     *
     * @param Channel|string                                 $channel
     * @param string|callable(mixed, string): bool|null      $event    the event's name, or the callback
     * @param (callable(mixed $message, string $event): bool)|null $callback counts only messages for which it returns true
     */
    public function assertBroadcast($channel, string|callable|null $event = null, ?callable $callback = null): void
    {
        $found = $this->matching($this->recorded($channel), $event, $callback);
        $this->assert($found !== [], 'Nothing like that was broadcast on [' . $channel . ']; ' . $this->seen());
    }

    /** No such message went out on the channel. @param Channel|string $channel */
    public function assertNotBroadcast($channel, string|callable|null $event = null, ?callable $callback = null): void
    {
        $found = $this->matching($this->recorded($channel), $event, $callback);
        $this->assert($found === [], count($found) . ' unexpected messages were broadcast on [' . $channel . '].');
    }

    /** Exactly so many messages went out on the channel. @param Channel|string $channel */
    public function assertBroadcastTimes($channel, int $times): void
    {
        $count = count($this->recorded($channel));
        $this->assert($count === $times, "$count messages were broadcast on [$channel] instead of $times.");
    }

    /** A message went out to the user. */
    public function assertBroadcastToUser(string|int $userId, string|callable|null $event = null, ?callable $callback = null): void
    {
        $toUser = array_filter($this->recorded(), fn (array $record) => $record['userId'] === (string) $userId);
        $this->assert($this->matching($toUser, $event, $callback) !== [], "Nothing like that was sent to user [$userId]; " . $this->seen());
    }

    /** Nothing went out at all. */
    public function assertNothingBroadcast(): void
    {
        $this->assert($this->recorded() === [], 'Unexpected messages were broadcast: ' . $this->seen());
    }

    /** `disconnectUser()` was called for the user. */
    public function assertDisconnected(string|int $userId): void
    {
        $this->fake->assertDisconnected($userId);
    }

    /** A frame with these keys and values reached the channel's subscribers. @param Channel|string $channel */
    public function assertFrame($channel, array $expected): void
    {
        foreach ($frames = $this->frames($channel) as $frame) {
            if (array_intersect_key($frame, $expected) == $expected) {
                $this->assert(true, '');

                return;
            }
        }
        $this->assert(false, 'No frame on [' . $channel . '] has ' . json_encode($expected) . '; there are ' . json_encode($frames));
    }

    /** Lets calls go to the hub again. */
    public function restore(): void
    {
        $this->fake->restore();
        app()->forgetInstance(self::class);
    }

    private function matching(array $records, string|callable|null $event, ?callable $callback): array
    {
        // A name like "date" is an event's, not a function's.
        if ($event !== null && !is_string($event)) {
            [$event, $callback] = [null, $event];
        }

        return array_filter(
            $records,
            fn (array $record) => ($event === null || $record['event'] === $event) && ($callback === null || $callback($record['message'], $record['event'])),
        );
    }

    private function seen(): string
    {
        $seen = array_map(fn (array $record) => ($record['channel'] ?? "user {$record['userId']}") . ' ' . $record['event'], $this->recorded());

        return $seen === [] ? 'nothing was broadcast' : 'there were: ' . implode(', ', $seen);
    }

    private function assert(bool $holds, string $message): void
    {
        if (class_exists(\PHPUnit\Framework\Assert::class)) {
            \PHPUnit\Framework\Assert::assertTrue($holds, $message);
        } elseif (!$holds) {
            throw new \Realtime\Testing\AssertionFailed($message);
        }
    }
}
