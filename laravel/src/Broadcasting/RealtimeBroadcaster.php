<?php

declare(strict_types=1);

namespace Realtime\Laravel\Broadcasting;

use Closure;
use Illuminate\Broadcasting\Broadcasters\Broadcaster;
use Illuminate\Broadcasting\Broadcasters\UsePusherChannelConventions;
use Illuminate\Broadcasting\BroadcastException;
use Illuminate\Support\Arr;
use Realtime\Exception\RealtimeException;
use Realtime\Laravel\Client\Message;
use Realtime\Laravel\Client\SocketId;
use Symfony\Component\HttpKernel\Exception\AccessDeniedHttpException;

/**
 * The driver `realtime`. Its answers to `/broadcasting/auth` are those of the driver `pusher`, so
 * Echo and pusher-js work as they are.
 *
 * Methods of Laravel's contract have no types, as there: versions 8 to 13 must take them.
 */
class RealtimeBroadcaster extends Broadcaster
{
    use UsePusherChannelConventions;

    /** Channels in one call, so that a call stays short whatever an event names. */
    private const MAX_CHANNELS = 100;

    /**
     * Laravel 8 has no user authentication, so what later versions declare is declared here as well.
     *
     * @var Closure|null
     */
    protected $authenticatedUserCallback = null;

    /**
     * @param Closure(list<string>, string, string, array): mixed $publish channels, JSON, event and options to the hub
     * @param Closure(string, string): (string|null)              $key     idempotency key for an event and its JSON
     */
    public function __construct(
        private Signer $signer,
        private Closure $publish,
        private Closure $key,
        private bool $signUser = true,
        private bool $jsonp = false,
    ) {}

    public function auth($request)
    {
        $name = $request->channel_name;
        // A colon would let the text of one signature pass for another's.
        if (!is_string($name) || $name === '' || strlen($name) > 200 || preg_match('/[:\x00-\x1f\x7f]/', $name) || !$this->hasSocket($request)) {
            throw new AccessDeniedHttpException();
        }
        $pattern = $this->normalizeChannelName($name);
        if ($this->isGuardedChannel($name) && !$this->retrieveUser($request, $pattern)) {
            throw new AccessDeniedHttpException();
        }

        return parent::verifyUserCanAccessChannel($request, $pattern);
    }

    public function validAuthenticationResponse($request, $result)
    {
        $name = $request->channel_name;
        $user = $this->isGuardedChannel($name) ? $this->retrieveUser($request, $this->normalizeChannelName($name)) : null;
        $data = match (true) {
            str_starts_with($name, 'presence-') => ['user_id' => $this->userId($user), 'user_info' => $result],
            $user !== null && $this->signUser => ['user_id' => $this->userId($user)],
            default => null,
        };
        $response = $this->signer->channel($request->socket_id, $name, $data === null ? null : Message::encode($data));
        if (str_starts_with($name, 'private-encrypted-')) {
            $response['shared_secret'] = $this->signer->sharedSecret($name);
        }

        return $this->respond($request, $response);
    }

    /** Who signs in: what `resolveAuthenticatedUserUsing()` says, else the request's user. */
    public function resolveAuthenticatedUser($request)
    {
        if (!$this->hasSocket($request)) {
            return null;
        }
        $user = $this->authenticatedUserCallback === null ? $this->signedIn($request) : ($this->authenticatedUserCallback)($request);

        return $user ? $this->signer->user($request->socket_id, Message::encode($user)) : null;
    }

    public function resolveAuthenticatedUserUsing(Closure $callback)
    {
        $this->authenticatedUserCallback = $callback;
    }

    public function broadcast(array $channels, $event, array $payload = [])
    {
        $options = ['json' => true, 'except' => Arr::pull($payload, 'socket')];
        $event = (string) $event;
        try {
            $json = Message::encode($payload);
            $options['id'] = ($this->key)($event, $json);
            [$encrypted, $plain] = $this->separate($this->formatChannels($channels));
            foreach (array_chunk($plain, self::MAX_CHANNELS) as $part) {
                ($this->publish)($part, $json, $event, $options);
            }
            foreach ($encrypted as $channel) {
                ($this->publish)([$channel], $this->signer->encrypt($channel, $json), $event, $options);
            }
        } catch (RealtimeException $e) {
            throw new BroadcastException("Realtime: {$e->getMessage()} (event $event)", 0, $e);
        }
    }

    /** @return array{list<string>, list<string>} encrypted channels and the others, each once */
    private function separate(array $channels): array
    {
        $encrypted = $plain = [];
        foreach (array_unique($channels) as $channel) {
            str_starts_with($channel, 'private-encrypted-') ? $encrypted[] = $channel : $plain[] = $channel;
        }

        return [$encrypted, $plain];
    }

    private function hasSocket($request): bool
    {
        return is_string($request->socket_id) && SocketId::isValid($request->socket_id);
    }

    private function signedIn($request): ?array
    {
        $user = $request->user();

        return $user ? ['id' => $this->userId($user)] : null;
    }

    private function userId($user): string
    {
        return (string) (method_exists($user, 'getAuthIdentifierForBroadcasting') ? $user->getAuthIdentifierForBroadcasting() : $user->getAuthIdentifier());
    }

    private function respond($request, array $response)
    {
        $callback = $this->jsonp ? $request->input('callback', false) : false;

        return $callback ? response()->json($response)->withCallback($callback) : $response;
    }
}
