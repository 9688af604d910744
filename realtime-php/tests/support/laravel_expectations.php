<?php

declare(strict_types=1);

namespace Tests;

/** What `laravel_results()` must give, wherever it ran. */
function laravel_tests(string $where, callable $results): void
{
    $actual = null;
    test("$where: broadcast() is the extension's and Laravel works with it", function () use ($results, &$actual) {
        $actual = $results();
        same(true, $actual['broadcast']);
    });
    test("$where: broadcast(new Event)->toOthers() spares the socket of the request", function () use (&$actual) {
        same([[['private-orders.1'], 'OrderShipped', ['order' => 1, 'socket' => '1.2']]], $actual['toOthers'] ?? null);
    });
    test("$where: broadcast(event: \$event) goes to everybody", function () use (&$actual) {
        same([[['private-orders.2'], 'OrderShipped', ['order' => 2, 'socket' => null]]], $actual['named'] ?? null);
    });
    test("$where: the pending broadcast is Laravel's and is sent when it is released", function () use (&$actual) {
        same(['Illuminate\Broadcasting\PendingBroadcast', [], 1], [$actual['pending'], $actual['not before it is released'], $actual['released']]);
        same('Illuminate\Broadcasting\PendingBroadcast', $actual['none']);
    });
    test("$where: broadcast(new PrivateChannel, \$data) publishes", function () use (&$actual) {
        same([null, [['private-a', ['n' => 1]]]], [$actual['two arguments'], $actual['recorded']]);
    });
    test("$where: what the container says counts", function () use (&$actual) {
        same('from the container', $actual['container']);
    });
}
