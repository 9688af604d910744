<?php

declare(strict_types=1);

namespace Realtime\Laravel\Client;

use Realtime\Exception\ConfigError;
use Realtime\Exception\RealtimeException;
use Realtime\Testing\Fake;

/**
 * What the functions in `polyfill/functions.php` share in a process: the client, the open batch,
 * the fake. The extension keeps the same for its own functions.
 */
final class Runtime
{
    private static ?self $current = null;

    private ?Client $client = null;
    private bool $off = false;
    private ?Fake $fake = null;
    /** @var list<Publication>|null what the open batch has collected; null outside of one */
    private ?array $batch = null;
    private int $failedCalls = 0;
    private float $logAgainAt = 0.0;

    public static function current(): self
    {
        return self::$current ??= new self();
    }

    /** Sends through this client from now on. */
    public function connect(Client $client): void
    {
        $this->client = $client;
    }

    public function client(): Client
    {
        // As the extension does where nothing is configured.
        return $this->client ??= new BusClient(
            ($sockets = getenv('REALTIME_SOCKET')) === false ? null : BusClient::addresses($sockets),
            getenv('REALTIME_SECRET') ?: null,
            getenv('REALTIME_SOCKET_CA') ?: null,
        );
    }

    /** @see \Realtime\publish() */
    public function publish(mixed $channel, mixed $message, string $as, array $options): Receipt|array
    {
        if ($this->batch !== null) {
            throw new \Error('Realtime\publish() has no receipt to give inside Realtime\batch(), which sends when its callback has returned');
        }
        $publications = Message::publications(Message::channels($channel), false, $message, $as, $options);
        if ($this->fake !== null || $this->off) {
            $this->record($publications, $message, $as, $options);
            $receipts = array_map(fn () => new Receipt($this->fake !== null, '', 0, 0), $publications);
        } else {
            $receipts = $this->client()->publish($publications);
        }

        return is_array($channel) ? $receipts : $receipts[0];
    }

    /** @see \broadcastToUser() */
    public function broadcastToUser(string|int $userId, mixed $message, string $as, array $options): void
    {
        $this->send(Message::publications([self::userId($userId)], true, $message, $as, $options), $message, $as, $options);
    }

    /** @see \Realtime\batch() */
    public function batch(callable $callback): mixed
    {
        $outermost = $this->batch === null;
        $mark = count($this->batch ??= []);
        $recorded = $this->fake?->recorded();
        try {
            $result = $callback();
        } catch (\Throwable $e) {
            $this->batch = $outermost ? null : array_slice($this->batch, 0, $mark);
            $recorded === null || $this->fake?->replace($recorded);
            throw $e;
        }
        if ($outermost) {
            [$collected, $this->batch] = [$this->batch, null];
            if ($collected !== []) {
                $this->guard(fn () => $this->client()->batch($collected), null);
            }
        }

        return $result;
    }

    public function channelUsers(string $channel): array
    {
        [$channel] = Message::channels($channel);

        return $this->lowered() ? [] : $this->guard(fn () => $this->client()->channelUsers($channel), []);
    }

    public function disconnectUser(string|int $userId, int $code, string $reason): int
    {
        if ($code !== 1000 && ($code < 3000 || $code > 4999)) {
            throw new \ValueError("disconnectUser(): Argument #2 (\$code) must be 1000 or from 3000 to 4999, $code given");
        }
        if (strlen($reason) > 123) {
            throw new \ValueError('disconnectUser(): Argument #3 ($reason) must have at most 123 bytes, ' . strlen($reason) . ' given');
        }
        $userId = self::userId($userId);
        $this->fake?->disconnect($userId);

        return $this->lowered() ? 0 : $this->guard(fn () => $this->client()->disconnectUser($userId, $code, $reason), 0);
    }

    public function channels(): array
    {
        return $this->lowered() ? [] : $this->client()->channels();
    }

    /** @see \Realtime\events() */
    public function events(int $timeoutMs): Events
    {
        if ($timeoutMs < 0) {
            throw new \ValueError('Realtime\events(): Argument #1 ($timeoutMs) must not be negative');
        }
        $client = $this->client();

        return $client instanceof BusClient ? new Events($client, $timeoutMs) : throw new ConfigError("events are read over the bus, not over {$client->describe()}");
    }

    public function stats(): array
    {
        return ['failed_calls' => $this->failedCalls] + ($this->lowered() ? [] : $this->client()->stats());
    }

    /** Calls check their arguments and do nothing else, from now on. */
    public function off(): void
    {
        $this->off = true;
    }

    /** Calls are recorded from now on, on a fresh record. */
    public function fake(): Fake
    {
        return $this->fake = new Fake(function (): void {
            $this->fake = null;
        });
    }

    private function lowered(): bool
    {
        return $this->off || $this->fake !== null;
    }

    /** @param list<Publication> $publications */
    private function send(array $publications, mixed $message, string $as, array $options): void
    {
        if ($this->lowered()) {
            $this->record($publications, $message, $as, $options);
        } elseif ($this->batch !== null) {
            array_push($this->batch, ...$publications);
        } else {
            $this->guard(fn () => $this->client()->publish($publications), null);
        }
    }

    private function record(array $publications, mixed $message, string $as, array $options): void
    {
        foreach ($this->fake === null ? [] : $publications as $publication) {
            $this->fake->record([
                'channel' => $publication->toUser ? null : $publication->target,
                'userId' => $publication->toUser ? $publication->target : null,
                'message' => $message, 'as' => $as, 'options' => $options,
            ]);
        }
    }

    /**
     * An outage must not take a site down: it is logged, at most once a second, and counted. A
     * mistake of the program's is thrown.
     */
    private function guard(callable $call, mixed $otherwise): mixed
    {
        try {
            return $call();
        } catch (RealtimeException $e) {
            if (!$e->isRetryable()) {
                throw $e;
            }
            $this->failedCalls++;
            if (microtime(true) >= $this->logAgainAt) {
                $this->logAgainAt = microtime(true) + 1;
                error_log("realtime: {$e->getMessage()} (failed calls: $this->failedCalls)");
            }

            return $otherwise;
        }
    }

    private static function userId(string|int $userId): string
    {
        $userId = (string) $userId;

        return $userId !== '' && strlen($userId) <= 128 && mb_check_encoding($userId, 'UTF-8')
            ? $userId
            : throw new \Realtime\Exception\InvalidMessage('a user id has 1 to 128 bytes of UTF-8, this one has ' . strlen($userId));
    }
}
