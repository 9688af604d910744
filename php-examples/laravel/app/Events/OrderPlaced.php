<?php

declare(strict_types=1);

namespace App\Events;

use App\Models\Order;
use Illuminate\Broadcasting\Channel;
use Illuminate\Broadcasting\InteractsWithSockets;
use Illuminate\Contracts\Broadcasting\ShouldBroadcast;

/** On the dashboard of everybody, but of who placed it: that page has drawn it already. */
class OrderPlaced implements ShouldBroadcast
{
    use InteractsWithSockets;

    public function __construct(private Order $order) {}

    public function broadcastOn()
    {
        return new Channel('orders');
    }

    public function broadcastWith()
    {
        return $this->order->only('id', 'item', 'state');
    }
}
