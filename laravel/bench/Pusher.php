<?php

/**
 * As much of Pusher's PHP SDK as Laravel's driver calls, with the same HTTP client and the same request: what the SDK
 * does besides (checks, logging) is left out, so that it costs less than the real one.
 */

declare(strict_types=1);

namespace Pusher;

use GuzzleHttp\Client;

class PusherException extends \Exception {}

class ApiErrorException extends PusherException {}

class Pusher
{
    private Client $client;

    public function __construct(private string $key, private string $secret, private string $appId, private array $options, ?Client $client = null)
    {
        $this->client = $client ?? new Client();
    }

    public function getSettings(): array
    {
        return ['auth_key' => $this->key, 'secret' => $this->secret] + $this->options;
    }

    public function trigger(array $channels, string $event, mixed $data, array $parameters = []): object
    {
        $body = json_encode(['name' => $event, 'data' => json_encode($data), 'channels' => array_values($channels)] + $parameters);
        $path = "/apps/$this->appId/events";
        $query = ['auth_key' => $this->key, 'auth_timestamp' => time(), 'auth_version' => '1.0', 'body_md5' => md5($body)];
        ksort($query);
        $query['auth_signature'] = hash_hmac('sha256', "POST\n$path\n" . urldecode(http_build_query($query)), $this->secret);
        $response = $this->client->post(ltrim($path, '/'), [
            'query' => $query, 'body' => $body, 'http_errors' => false, 'headers' => ['Content-Type' => 'application/json'],
            'base_uri' => "{$this->options['scheme']}://{$this->options['host']}:{$this->options['port']}",
        ]);
        $text = (string) $response->getBody();
        if ($response->getStatusCode() !== 200) {
            throw new ApiErrorException($text, $response->getStatusCode());
        }

        return json_decode($text);
    }
}
