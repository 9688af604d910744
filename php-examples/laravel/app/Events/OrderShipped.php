<?php

declare(strict_types=1);

namespace App\Events;

use App\Models\Order;
use Illuminate\Broadcasting\Channel;
use Illuminate\Broadcasting\EncryptedPrivateChannel;
use Illuminate\Broadcasting\PrivateChannel;
use Illuminate\Contracts\Broadcasting\ShouldBroadcast;

/** On the dashboard, on the customer's own channel, and, sealed, for the ledger. */
class OrderShipped implements ShouldBroadcast
{
    public function __construct(private Order $order) {}

    public function broadcastOn()
    {
        return [new Channel('orders'), new PrivateChannel("customers.{$this->order->user_id}"), new EncryptedPrivateChannel('ledger')];
    }

    public function broadcastAs()
    {
        return 'order.shipped';
    }

    public function broadcastWith()
    {
        return $this->order->only('id', 'item', 'state');
    }
}
