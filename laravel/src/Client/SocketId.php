<?php

declare(strict_types=1);

namespace Realtime\Laravel\Client;

/** What a hub calls a connection: two decimal numbers of 64 bits, joined by a dot. */
final class SocketId
{
    private const LARGEST = '18446744073709551615';

    public static function isValid(string $id): bool
    {
        if (!preg_match('/\A(\d{1,20})\.(\d{1,20})\z/', $id, $parts)) {
            return false;
        }

        return self::fits($parts[1]) && self::fits($parts[2]);
    }

    /** The two numbers, little-endian, as the bus has them. */
    public static function pack(string $id): string
    {
        [$first, $second] = explode('.', $id);

        return self::number($first) . self::number($second);
    }

    private static function fits(string $digits): bool
    {
        return strlen($digits) < 20 || strcmp($digits, self::LARGEST) <= 0;
    }

    /** PHP's integers end at 63 bits, so the upper half is carried by hand. */
    private static function number(string $digits): string
    {
        $low = $high = 0;
        foreach (str_split($digits) as $digit) {
            $low = $low * 10 + (int) $digit;
            $high = $high * 10 + ($low >> 32);
            $low &= 0xffffffff;
        }

        return pack('VV', $low, $high & 0xffffffff);
    }
}
