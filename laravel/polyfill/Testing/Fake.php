<?php

declare(strict_types=1);

namespace Realtime\Testing;

/** What was recorded instead of sent, and assertions on it. In PHPUnit they count as PHPUnit's own. */
final class Fake
{
    private array $broadcasts = [];
    private array $disconnected = [];

    /** @internal */
    public function __construct(private \Closure $restore) {}

    /** @return list<array{channel: ?string, userId: ?string, message: mixed, as: string, options: array}> oldest first */
    public function recorded(?string $channel = null): array
    {
        return $channel === null
            ? $this->broadcasts
            : array_values(array_filter($this->broadcasts, fn (array $record) => $record['channel'] === $channel));
    }

    public function assertBroadcast(string $channel, ?callable $callback = null): void
    {
        $this->assert($this->count('channel', $channel, $callback) > 0, 'No message' . self::matching($callback) . " was broadcast on channel [$channel].");
    }

    public function assertNotBroadcast(string $channel, ?callable $callback = null): void
    {
        $count = $this->count('channel', $channel, $callback);
        $this->assert($count === 0, "$count unexpected messages" . self::matching($callback) . " were broadcast on channel [$channel].");
    }

    public function assertBroadcastTimes(string $channel, int $times): void
    {
        $count = $this->count('channel', $channel, null);
        $this->assert($count === $times, "$count messages were broadcast on channel [$channel] instead of $times.");
    }

    public function assertBroadcastToUser(string|int $userId, ?callable $callback = null): void
    {
        $this->assert($this->count('userId', (string) $userId, $callback) > 0, 'No message' . self::matching($callback) . " was sent to user [$userId].");
    }

    public function assertNothingBroadcast(): void
    {
        $this->assert($this->broadcasts === [], count($this->broadcasts) . ' unexpected messages were broadcast.');
    }

    public function assertDisconnected(string|int $userId): void
    {
        $this->assert(in_array((string) $userId, $this->disconnected, true), "User [$userId] was not disconnected.");
    }

    /** Lets calls go to the hub again. */
    public function restore(): void
    {
        ($this->restore)();
    }

    /** @internal */
    public function record(array $record): void
    {
        $this->broadcasts[] = $record;
    }

    /** @internal */
    public function replace(array $records): void
    {
        $this->broadcasts = $records;
    }

    /** @internal */
    public function disconnect(string $userId): void
    {
        $this->disconnected[] = $userId;
    }

    private function count(string $key, string $wanted, ?callable $callback): int
    {
        return count(array_filter(
            $this->broadcasts,
            fn (array $record) => $record[$key] === $wanted && ($callback === null || $callback($record['message'], $record['as'], $record['options'])),
        ));
    }

    private static function matching(?callable $callback): string
    {
        return $callback === null ? '' : ' that the callback accepts';
    }

    private function assert(bool $holds, string $message): void
    {
        if (class_exists(\PHPUnit\Framework\Assert::class)) {
            \PHPUnit\Framework\Assert::assertTrue($holds, $message);
        } elseif (!$holds) {
            throw new AssertionFailed($message);
        }
    }
}
