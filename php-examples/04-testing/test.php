<?php

declare(strict_types=1);

/** The code under test. */
function ship(int $order): void
{
    broadcast("orders.$order", ['state' => 'shipped'], as: 'order.shipped');
    broadcastToUser(7, "Your order $order is on its way");
}

$realtime = Realtime\Testing\fake();

ship(42);

$realtime->assertBroadcast('orders.42');
$realtime->assertBroadcast('orders.42', fn (array $message, string $as) => $message['state'] === 'shipped' && $as === 'order.shipped');
$realtime->assertBroadcastToUser(7);
$realtime->assertNotBroadcast('orders.43');
echo count($realtime->recorded()), " messages recorded, every assertion holds\n";

try {
    $realtime->assertBroadcast('orders.43');
} catch (Realtime\Testing\AssertionFailed $e) {
    echo 'and one that does not: ', $e->getMessage(), "\n";
}

$realtime->restore();
