<?php

declare(strict_types=1);

require __DIR__ . '/../support/harness.php';

use Realtime\Testing\AssertionFailed;

use function Realtime\Testing\fake;
use function Tests\{check, php, same, test, throws};

test('a fake records what would be sent, and needs no hub', function () {
    $fake = fake();
    broadcast('orders', ['id' => 7], 'shipped', ['id' => 'k']);
    broadcast(['a', 'b'], 'text');
    broadcastToUser(42, 'hello');
    same(true, Realtime\publish('orders', 'x')->accepted);
    same(2, count(Realtime\publish(['x', 'y'], 'x')));
    same([
        ['channel' => 'orders', 'userId' => null, 'message' => ['id' => 7], 'as' => 'shipped', 'options' => ['id' => 'k']],
        ['channel' => 'a', 'userId' => null, 'message' => 'text', 'as' => 'message', 'options' => []],
        ['channel' => 'b', 'userId' => null, 'message' => 'text', 'as' => 'message', 'options' => []],
        ['channel' => null, 'userId' => '42', 'message' => 'hello', 'as' => 'message', 'options' => []],
    ], array_slice($fake->recorded(), 0, 4));
    same(2, count($fake->recorded('orders')));
    same([[], []], [getChannelUsers('a'), Realtime\channels()]);
    $fake->restore();
});

test('a fake records the channel that a reference held when the call began', function () {
    $fake = fake();
    // Strings that nobody else has: opcache makes constants of what it can, which are not freed.
    $own = fn (string $letter): string => str_repeat($letter, 60);
    $channel = $own('a');
    broadcast([&$channel], new class ($channel, $own) implements Stringable {
        private array $others = [];

        public function __construct(private mixed &$place, private Closure $own) {}

        public function __toString(): string
        {
            $this->place = null;
            for ($i = 0; $i < 50; $i++) {
                $this->others[] = ($this->own)('z');
            }
            return 'converted';
        }
    });
    same([null, [str_repeat('a', 60)]], [$channel, array_column($fake->recorded(), 'channel')]);
    $fake->restore();
});

test('assertions hold or say what is missing', function () {
    $fake = fake();
    $fake->assertNothingBroadcast();
    broadcast('orders', ['id' => 7], 'shipped');
    broadcast('orders', ['id' => 8]);
    broadcastToUser(42, 'hello');
    disconnectUser(9);
    $fake->assertBroadcast('orders');
    $fake->assertBroadcast('orders', fn (array $message, string $as, array $options) => $message['id'] === 7 && $as === 'shipped' && $options === []);
    $fake->assertBroadcast('orders', fn ($message) => $message['id'] === 8);
    $fake->assertNotBroadcast('other');
    $fake->assertNotBroadcast('orders', fn ($message) => $message['id'] === 9);
    $fake->assertBroadcastTimes('orders', 2);
    $fake->assertBroadcastTimes('other', 0);
    $fake->assertBroadcastToUser('42');
    $fake->assertBroadcastToUser(42, fn ($message) => $message === 'hello');
    $fake->assertDisconnected(9);
    throws(AssertionFailed::class, 'Nothing was broadcast on channel [other].', fn () => $fake->assertBroadcast('other'));
    throws(AssertionFailed::class, 'pleases the callback', fn () => $fake->assertBroadcast('orders', fn () => false));
    throws(AssertionFailed::class, '2 unexpected messages', fn () => $fake->assertNotBroadcast('orders'));
    throws(AssertionFailed::class, 'instead of 5', fn () => $fake->assertBroadcastTimes('orders', 5));
    throws(AssertionFailed::class, 'user [43]', fn () => $fake->assertBroadcastToUser(43));
    throws(AssertionFailed::class, '3 unexpected', fn () => $fake->assertNothingBroadcast());
    throws(AssertionFailed::class, 'User [1] was not disconnected', fn () => $fake->assertDisconnected(1));
    throws(DomainException::class, 'from the callback', fn () => $fake->assertBroadcast('orders', fn () => throw new DomainException('from the callback')));
    throws(TypeError::class, 'callback', fn () => (fn ($fake) => $fake->assertBroadcast('orders', 'no such function'))($fake));
    $fake->restore();
});

test('what could not be sent is refused by the fake too', function () {
    $fake = fake();
    throws(Realtime\Exception\InvalidChannel::class, '', fn () => broadcast('', 'x'));
    throws(Realtime\Exception\InvalidMessage::class, '', fn () => broadcast('a', "\xff"));
    throws(Realtime\Exception\InvalidMessage::class, 'did you mean', fn () => broadcast('a', 'x', options: ['excep' => 1]));
    $fake->assertNothingBroadcast();
    $fake->restore();
});

test('restore() lets calls go to the hub again, and only the active fake restores', function () {
    $hub = Realtime\start(['listen' => '127.0.0.1:0', 'shards' => 1]);
    $client = Tests\Client::subscribed($hub->url, 'a');
    [$old, $new] = [fake(), fake()];
    $old->restore();
    broadcast('a', 'faked');
    $new->restore();
    broadcast('a', 'sent');
    same('sent', $client->next()['data']);
    same([0, 1], [count($old->recorded()), count($new->recorded())]);
    $hub->stop();
});

test('recorded objects are kept as they are, and what was given out does not change', function () {
    $fake = fake();
    $message = new class implements JsonSerializable {
        public array $items = [];

        public function jsonSerialize(): array
        {
            return $this->items;
        }
    };
    broadcast('a', $message);
    $before = $fake->recorded();
    broadcast('a', 'more');
    same([1, 2], [count($before), count($fake->recorded())]);
    same(true, $before[0]['message'] === $message);
    // A cycle through the fake itself is collected with the rest.
    $message->items[] = $fake;
    $fake->restore();
    $reference = WeakReference::create($message);
    unset($message, $fake, $before);
    gc_collect_cycles();
    same(null, $reference->get());
});

test('a callback may broadcast while it is asked', function () {
    $fake = fake();
    broadcast('a', 1);
    $fake->assertBroadcast('a', function () {
        broadcast('a', 2);
        return true;
    });
    $fake->assertBroadcastTimes('a', 2);
    $fake->restore();
});

test('a fake that is never restored ends with its request', function () {
    same('done', php("Realtime\\Testing\\fake(); for (\$i = 0; \$i < 20000; \$i++) broadcast('a', ['i' => \$i]); echo 'done';")->output());
});

test('under PHPUnit the assertions are PHPUnit\'s', function () {
    $code = <<<'PHP'
        namespace PHPUnit\Framework;
        class Assert { public static $count = 0; public static function assertTrue($condition, string $message = ''): void { self::$count++; if (!$condition) throw new \LogicException("phpunit: $message"); } }
        $fake = \Realtime\Testing\fake();
        \broadcast('a', 'x');
        $fake->assertBroadcast('a');
        \Tests\throws(\LogicException::class, 'phpunit: Nothing was broadcast', fn () => $fake->assertBroadcast('b'));
        echo Assert::$count;
        PHP;
    same('2', php('eval(' . var_export($code, true) . ');')->output());
});

test('a fake cannot be made or serialized by hand', function () {
    throws(Error::class, 'private', fn () => new Realtime\Testing\Fake());
    $fake = fake();
    throws(Exception::class, 'not allowed', fn () => serialize($fake));
    $fake->restore();
});
