<?php

declare(strict_types=1);

namespace Realtime\Laravel\Events;

/** The hub's events as objects. */
final class Factory
{
    /** By the names that the hub has for them, in `hooks.events` as well. */
    public const CLASSES = [
        'connect' => ConnectionOpened::class,
        'disconnect' => ConnectionClosed::class,
        'subscribe' => ChannelSubscribed::class,
        'unsubscribe' => ChannelUnsubscribed::class,
        'joined' => ChannelJoined::class,
        'left' => ChannelLeft::class,
        'occupied' => ChannelOccupied::class,
        'vacated' => ChannelVacated::class,
        'message' => MessageReceived::class,
    ];

    /** @param array<string, mixed> $event as `Realtime\events()` gives it; null: of a kind that this package does not know */
    public static function make(array $event): ?HubEvent
    {
        $delivery = new Delivery($event['at_ms'] ?? 0, $event['app'] ?? '', $event['number'] ?? 0, $event['attempt'] ?? 1, $event['dropped'] ?? 0);
        $socket = (string) ($event['connection'] ?? '');
        $channel = (string) ($event['channel'] ?? '');
        $user = ['userId' => $event['user_id'] ?? null, 'userInfo' => $event['user_info'] ?? null, 'delivery' => $delivery];

        return match ($event['kind'] ?? null) {
            'connect' => new ConnectionOpened($socket, ...$user),
            'disconnect' => new ConnectionClosed($socket, (string) ($event['reason'] ?? ''), ...$user),
            'subscribe' => new ChannelSubscribed($socket, $channel, ...$user),
            'unsubscribe' => new ChannelUnsubscribed($socket, $channel, ...$user),
            'joined' => new ChannelJoined($channel, ...['userId' => (string) $user['userId']] + $user),
            'left' => new ChannelLeft($channel, ...['userId' => (string) $user['userId']] + $user),
            'occupied' => new ChannelOccupied($channel, $delivery),
            'vacated' => new ChannelVacated($channel, $delivery),
            'message' => new MessageReceived($socket, (string) ($event['event'] ?? ''), $event['data'] ?? null, $event['text'] ?? null, $event['bytes'] ?? null, ...$user),
            default => null,
        };
    }
}
