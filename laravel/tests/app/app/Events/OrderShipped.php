<?php

declare(strict_types=1);

namespace App\Events;

use Illuminate\Broadcasting\InteractsWithSockets;
use Illuminate\Broadcasting\PrivateChannel;
use Illuminate\Contracts\Broadcasting\ShouldBroadcast;

class OrderShipped implements ShouldBroadcast
{
    use InteractsWithSockets;

    public function __construct(public int $order) {}

    public function broadcastOn()
    {
        return new PrivateChannel('orders.1');
    }

    public function broadcastAs()
    {
        return 'shipped';
    }
}
