<?php

declare(strict_types=1);

require __DIR__ . '/../support/harness.php';
require __DIR__ . '/../support/laravel_expectations.php';

use function Tests\{contains, laravel_tests, php, same, test, throws, with_hub};

test('outside Laravel one argument is a TypeError that says what was meant', function () {
    foreach ([fn () => broadcast('orders'), fn () => broadcast(new stdClass()), fn () => broadcast(), fn () => broadcast(event: 'x')] as $call) {
        $e = throws(TypeError::class, "Laravel's helper", $call);
        contains('broadcast($channel, $message)', $e->getMessage());
    }
});

test('somebody else\'s app() does not make it Laravel', function () {
    same('fine', php("eval('function app() { throw new Exception(\"called\"); }'); throws(TypeError::class, \"Laravel's helper\", fn () => broadcast('x')); echo 'fine';")->output());
});

test('the container alone, in a program that is not Laravel\'s, does not make it Laravel', function () {
    $code = <<<'PHP'
        error_reporting(E_ALL & ~E_DEPRECATED);
        require_once '/usr/share/php/Illuminate/Container/autoload.php';
        Illuminate\Container\Container::getInstance();
        throws(TypeError::class, "Laravel's helper", fn () => broadcast('x'));
        echo 'fine';
        PHP;
    same('fine', php($code)->output());
});

test('what Laravel throws comes through', function () {
    $code = <<<'PHP'
        require __DIR__ . '/laravel.php';
        $app = new Illuminate\Foundation\Application(sys_get_temp_dir());
        Illuminate\Container\Container::setInstance($app);
        throws(Illuminate\Contracts\Container\BindingResolutionException::class, 'Factory', fn () => broadcast('x'));
        $app->instance(Illuminate\Contracts\Broadcasting\Factory::class, new class { function event($e) { throw new DomainException('from event()'); } });
        throws(DomainException::class, 'from event()', fn () => broadcast('x'));
        echo 'fine';
        PHP;
    same('fine', php(str_replace('__DIR__', var_export(dirname(__DIR__) . '/support', true), $code))->output());
});

require __DIR__ . '/../support/laravel.php';

laravel_tests('command line', fn () => json_decode(json_encode(laravel_results()), true));

with_hub(function (Realtime\Hub|Tests\HubProcess $hub) {
    test('command line: what has data goes to the hub, on Laravel\'s channel names', function () use ($hub) {
        $client = Tests\Client::subscribed($hub->url, 'orders.1');
        same(null, broadcast(new Illuminate\Broadcasting\Channel('orders.1'), ['n' => 1], as: 'shipped'));
        same(['shipped', ['n' => 1]], array_values(array_intersect_key($client->next(), ['event' => 1, 'data' => 1])));
    });
});
