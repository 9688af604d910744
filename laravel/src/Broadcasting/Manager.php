<?php

declare(strict_types=1);

namespace Realtime\Laravel\Broadcasting;

use Illuminate\Broadcasting\BroadcastEvent;
use Illuminate\Broadcasting\BroadcastManager;
use Illuminate\Broadcasting\Channel;
use Illuminate\Contracts\Broadcasting\ShouldBroadcastNow;
use InvalidArgumentException;

/**
 * Laravel's manager, but that events may go out without a queue, and that a message meant for a
 * channel is not taken for an event.
 */
class Manager extends BroadcastManager
{
    public function event($event = null)
    {
        if (is_string($event) || $event instanceof Channel) {
            $channel = is_string($event) ? "'$event'" : 'new ' . get_class($event);
            throw new InvalidArgumentException(extension_loaded('realtime')
                ? "broadcast($channel) names a channel and no message; write broadcast($channel, \$message)"
                : "broadcast($channel, …) needs the PHP extension \"realtime\"; without it, write Realtime\\publish($channel, \$message)");
        }

        return parent::event($event);
    }

    public function queue($event)
    {
        $now = $event instanceof ShouldBroadcastNow || method_exists($event, 'shouldBroadcastNow') && $event->shouldBroadcastNow();
        if ($now || !$this->goesWithoutQueue($event)) {
            return parent::queue($event);
        }
        $this->app->make(Outbox::class)->add(new BroadcastEvent(clone $event));
    }

    private function goesWithoutQueue(object $event): bool
    {
        $config = $this->app['config'];
        $names = method_exists($event, 'broadcastConnections') ? $event->broadcastConnections() : [null];
        foreach ($names as $name) {
            $name = $name instanceof \BackedEnum ? $name->value : ($name ?: $this->getDefaultDriver());
            $connection = $config["broadcasting.connections.$name"] ?? [];
            if (($connection['driver'] ?? null) !== 'realtime' || ($connection['queue'] ?? $config['realtime.queue']) !== false) {
                return false;
            }
        }

        return true;
    }
}
