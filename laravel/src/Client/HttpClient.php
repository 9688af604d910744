<?php

declare(strict_types=1);

namespace Realtime\Laravel\Client;

use Realtime\Exception\ConfigError;
use Realtime\Exception\InvalidMessage;
use Realtime\Exception\MessageTooLarge;
use Realtime\Exception\RealtimeException;
use Realtime\Exception\Timeout;
use Realtime\Exception\Unauthorized;
use Realtime\Exception\Unavailable;

/**
 * The signed HTTP API of Pusher Channels, for where no bus reaches the hub. With ext-curl the
 * connection is kept from call to call.
 */
final class HttpClient implements Client
{
    private const CONNECT_MS = 2_000;
    private const CALL_MS = 5_000;
    /** What the API takes in one request. */
    private const MAX_CHANNELS = 100;
    private const MAX_BATCH = 10;

    private ?\CurlHandle $curl = null;

    /** @param string $url where the API is: scheme, host, port and, if it is mounted below one, a path */
    public function __construct(
        private string $url,
        private string $appId,
        private string $key,
        #[\SensitiveParameter] private string $secret,
    ) {
        foreach (['app id' => $appId, 'key' => $key, 'secret' => $secret] as $what => $value) {
            if ($value === '') {
                throw new ConfigError("publishing over HTTP needs the app's $what");
            }
        }
    }

    public function publish(array $publications): array
    {
        // What differs in nothing but the channel goes in one request.
        foreach (self::runs($publications) as $run) {
            foreach (array_chunk($run, self::MAX_CHANNELS) as $part) {
                $event = self::event($part[0]);
                unset($event['channel']);
                $this->call('POST', '/events', [], $event + ['channels' => array_map(self::channel(...), $part)]);
            }
        }

        return array_map(fn () => new Receipt(true, '', 0, 0), $publications);
    }

    public function batch(array $publications): void
    {
        foreach (array_chunk($publications, self::MAX_BATCH) as $part) {
            $this->call('POST', '/batch_events', [], ['batch' => array_map(self::event(...), $part)]);
        }
    }

    public function channelUsers(string $channel): array
    {
        $users = $this->call('GET', '/channels/' . rawurlencode($channel) . '/users')['users'] ?? [];

        return array_map(fn (array $user) => ['id' => (string) $user['id'], 'info' => $user['info'] ?? null, 'connections' => $user['connections'] ?? 1], $users);
    }

    public function disconnectUser(string $userId, int $code, string $reason): int
    {
        $this->call('POST', '/users/' . rawurlencode($userId) . '/terminate_connections', [], new \stdClass());

        return -1;
    }

    public function channels(): array
    {
        $channels = $this->call('GET', '/channels', ['info' => 'subscription_count'])['channels'] ?? [];

        return array_map(fn ($name, array $info) => ['name' => (string) $name, 'subscribers' => $info['subscription_count'] ?? 0], array_keys($channels), $channels);
    }

    public function stats(): array
    {
        return $this->call('GET', '/connections');
    }

    public function describe(): string
    {
        return "the HTTP API at $this->url";
    }

    /** @return iterable<list<Publication>> neighbours that differ in their target alone */
    private static function runs(array $publications): iterable
    {
        $run = [];
        foreach ($publications as $publication) {
            if ($run !== [] && self::differ($run[0], $publication)) {
                yield $run;
                $run = [];
            }
            $run[] = $publication;
        }
        yield $run;
    }

    private static function differ(Publication $a, Publication $b): bool
    {
        return [$a->event, $a->kind, $a->body, $a->except, $a->id] !== [$b->event, $b->kind, $b->body, $b->except, $b->id];
    }

    private static function channel(Publication $publication): string
    {
        return $publication->toUser ? "#server-to-user-$publication->target" : $publication->target;
    }

    private static function event(Publication $publication): array
    {
        if ($publication->kind === Publication::BINARY) {
            throw new InvalidMessage('the HTTP API has no binary messages');
        }
        if (count($publication->except) > 1) {
            throw new InvalidMessage('the HTTP API can except one connection, not ' . count($publication->except));
        }

        return ['name' => $publication->event, 'channel' => self::channel($publication), 'data' => $publication->json()]
            + array_filter(['socket_id' => $publication->except[0] ?? null]);
    }

    /** Signs a request as Pusher's SDKs do, sends it, and reads the JSON of the answer. */
    private function call(string $method, string $path, array $query = [], array|object|null $body = null): array
    {
        $path = "/apps/$this->appId$path";
        $text = $body === null ? '' : Message::encode($body);
        $query += ['auth_key' => $this->key, 'auth_timestamp' => (string) time(), 'auth_version' => '1.0'];
        if ($text !== '') {
            $query['body_md5'] = md5($text);
        }
        ksort($query);
        $signed = implode('&', array_map(fn ($key, $value) => "$key=$value", array_keys($query), $query));
        $query['auth_signature'] = hash_hmac('sha256', "$method\n$path\n$signed", $this->secret);
        [$status, $answer] = $this->send($method, rtrim($this->url, '/') . $path . '?' . http_build_query($query), $text);
        if ($status !== 200) {
            throw self::refused($status, $answer);
        }

        return json_decode($answer, true) ?? throw new Unavailable('what answers there is no hub: its answer is not JSON');
    }

    private static function refused(int $status, string $answer): RealtimeException
    {
        $message = "the hub answered $status: " . substr(trim($answer), 0, 300);

        return match (true) {
            $status === 401, $status === 403 => new Unauthorized($message),
            $status === 413 => new MessageTooLarge($message),
            $status >= 500, $status === 429 => new Unavailable($message),
            $status === 404 => new ConfigError($message),
            default => new InvalidMessage($message),
        };
    }

    /** @return array{int, string} status and body */
    private function send(string $method, string $url, string $body): array
    {
        if (!function_exists('curl_init')) {
            return $this->sendWithStreams($method, $url, $body);
        }
        $curl = $this->curl ??= curl_init();
        curl_setopt_array($curl, [
            CURLOPT_URL => $url,
            CURLOPT_CUSTOMREQUEST => $method,
            CURLOPT_POSTFIELDS => $method === 'POST' ? $body : null,
            CURLOPT_HTTPGET => $method === 'GET',
            CURLOPT_HTTPHEADER => ['Content-Type: application/json', 'Expect:'],
            CURLOPT_RETURNTRANSFER => true,
            CURLOPT_CONNECTTIMEOUT_MS => self::CONNECT_MS,
            CURLOPT_TIMEOUT_MS => self::CALL_MS,
            CURLOPT_NOSIGNAL => true,
        ]);
        $answer = curl_exec($curl);
        if ($answer === false) {
            $message = 'no hub answers at ' . $this->url . ': ' . curl_error($curl);
            throw curl_errno($curl) === CURLE_OPERATION_TIMEDOUT ? new Timeout($message) : new Unavailable($message);
        }

        return [curl_getinfo($curl, CURLINFO_RESPONSE_CODE), $answer];
    }

    private function sendWithStreams(string $method, string $url, string $body): array
    {
        $context = stream_context_create(['http' => [
            'method' => $method, 'content' => $body, 'header' => 'Content-Type: application/json',
            'timeout' => self::CALL_MS / 1000, 'ignore_errors' => true, 'follow_location' => 0,
        ]]);
        $answer = @file_get_contents($url, false, $context);
        if ($answer === false || !preg_match('~^HTTP/\S+ (\d{3})~', $http_response_header[0] ?? '', $status)) {
            throw new Unavailable('no hub answers at ' . $this->url . ': ' . (error_get_last()['message'] ?? 'no answer'));
        }

        return [(int) $status[1], $answer];
    }
}
