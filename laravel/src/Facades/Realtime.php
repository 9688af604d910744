<?php

declare(strict_types=1);

namespace Realtime\Laravel\Facades;

use Illuminate\Support\Facades\Facade;
use Realtime\Laravel\Testing\RealtimeFake;

/**
 * In tests: what would have been sent, and assertions on it. On by itself under
 * `runningUnitTests()`; `Realtime::fake()` starts a fresh record.
 *
 * @method static list<array> recorded($channel = null)
 * @method static list<array> frames($channel)
 * @method static void        assertBroadcast($channel, string|callable|null $event = null, ?callable $callback = null)
 * @method static void        assertNotBroadcast($channel, string|callable|null $event = null, ?callable $callback = null)
 * @method static void        assertBroadcastTimes($channel, int $times)
 * @method static void        assertBroadcastToUser(string|int $userId, string|callable|null $event = null, ?callable $callback = null)
 * @method static void        assertNothingBroadcast()
 * @method static void        assertDisconnected(string|int $userId)
 * @method static void        assertFrame($channel, array $expected)
 *
 * @see RealtimeFake
 */
class Realtime extends Facade
{
    /** Records from now on instead of sending, on a fresh record. */
    public static function fake(): RealtimeFake
    {
        $fake = new RealtimeFake(\Realtime\Testing\fake());
        static::swap($fake);

        return $fake;
    }

    protected static function getFacadeAccessor(): string
    {
        return RealtimeFake::class;
    }
}
