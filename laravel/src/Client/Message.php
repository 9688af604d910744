<?php

declare(strict_types=1);

namespace Realtime\Laravel\Client;

use Realtime\Exception\InvalidChannel;
use Realtime\Exception\InvalidMessage;

/**
 * PHP values to what a hub takes: channels, messages and options, by the rules of the extension.
 */
final class Message
{
    private const FLAGS = JSON_UNESCAPED_SLASHES | JSON_UNESCAPED_UNICODE | JSON_PRESERVE_ZERO_FRACTION | JSON_THROW_ON_ERROR;
    private const OPTIONS = ['except', 'id', 'ttl_ms', 'history', 'json', 'binary', 'app'];
    private const MAX_CHANNEL_BYTES = 200;
    /** As many as a frame of the bus has room to name. */
    private const MAX_EXCEPT = 255;

    /** @throws InvalidMessage */
    public static function encode(mixed $value): string
    {
        try {
            return json_encode($value, self::FLAGS);
        } catch (\JsonException $e) {
            throw new InvalidMessage('the message cannot be encoded as JSON: ' . $e->getMessage(), 0, $e);
        }
    }

    /**
     * A publication to each target.
     *
     * @param list<string> $targets
     *
     * @return list<Publication>
     *
     * @throws InvalidMessage
     */
    public static function publications(array $targets, bool $toUser, mixed $message, string $as, array $options): array
    {
        $options = self::options($options);
        [$kind, $body] = self::body($message, $options);
        if ($as === '' || strlen($as) > 200 || !mb_check_encoding($as, 'UTF-8')) {
            throw new InvalidMessage('the event\'s name must be 1 to 200 bytes of UTF-8, ' . strlen($as) . ' given');
        }
        $except = self::socketIds($options['except'] ?? null);

        return array_map(
            fn (string $target) => new Publication($target, $toUser, $as, $kind, $body, $except, $options['id'] ?? null),
            $targets,
        );
    }

    /**
     * @return list<string> the channels that the argument names: one, or a list
     *
     * @throws InvalidChannel
     */
    public static function channels(mixed $channel): array
    {
        if (!is_array($channel)) {
            return [self::channel($channel)];
        }
        if ($channel === []) {
            throw new InvalidChannel('the list of channels is empty');
        }

        return array_map(self::channel(...), array_values($channel));
    }

    /** @throws InvalidChannel */
    private static function channel(mixed $channel): string
    {
        $name = match (true) {
            is_string($channel) => $channel,
            $channel instanceof \BackedEnum => (string) $channel->value,
            $channel instanceof \Stringable => (string) $channel,
            default => throw new InvalidChannel('a channel must be a string, a Stringable or a backed enum, ' . get_debug_type($channel) . ' given'),
        };
        $bytes = strlen($name);
        if ($bytes === 0 || $bytes > self::MAX_CHANNEL_BYTES) {
            throw new InvalidChannel("a channel name has 1 to " . self::MAX_CHANNEL_BYTES . " bytes, this one has $bytes");
        }
        if ($name[0] === '#') {
            throw new InvalidChannel("channel names that start with # are internal: $name");
        }
        if (!mb_check_encoding($name, 'UTF-8')) {
            throw new InvalidChannel('the channel name is not valid UTF-8');
        }
        if (preg_match('/[\x00-\x1f\x7f]|\xc2[\x80-\x9f]/', $name)) {
            throw new InvalidChannel('the channel name has a control character in it');
        }

        return $name;
    }

    /** @return array{int, string} kind and bytes */
    private static function body(mixed $message, array $options): array
    {
        $json = $options['json'] ?? false;
        $binary = $options['binary'] ?? false;
        if ($json && $binary) {
            throw new InvalidMessage('options `json` and `binary` exclude each other');
        }
        if ($message instanceof \BackedEnum) {
            $message = $message->value;
        } elseif ($message instanceof \Stringable && !$message instanceof \JsonSerializable) {
            $message = (string) $message;
        } elseif (is_resource($message) || is_object($message) && !$message instanceof \JsonSerializable) {
            throw new InvalidMessage('a message cannot be of type ' . get_debug_type($message) . ': send a string, an array, a scalar, null, a JsonSerializable, a backed enum or a Stringable');
        }
        if (!is_string($message)) {
            return $json || $binary
                ? throw new InvalidMessage('options `json` and `binary` need a string, ' . get_debug_type($message) . ' given')
                : [Publication::JSON, self::encode($message)];
        }
        if ($binary) {
            return [Publication::BINARY, $message];
        }
        if (!mb_check_encoding($message, 'UTF-8')) {
            throw new InvalidMessage('the message is not valid UTF-8; send bytes with the option binary: true');
        }
        if (!$json) {
            return [Publication::TEXT, $message];
        }
        json_decode($message);

        return json_last_error() === JSON_ERROR_NONE
            ? [Publication::JSON, $message]
            : throw new InvalidMessage('the message is not valid JSON: ' . json_last_error_msg());
    }

    /** @throws InvalidMessage */
    private static function options(array $options): array
    {
        foreach ($options as $name => $value) {
            if (!in_array($name, self::OPTIONS, true)) {
                $near = array_filter(self::OPTIONS, fn (string $known) => levenshtein($known, (string) $name) <= 2);
                throw new InvalidMessage("unknown option `$name`" . ($near === [] ? '' : ', did you mean `' . current($near) . '`?'));
            }
            if (in_array($name, ['json', 'binary', 'history'], true) && !is_bool($value) && $value !== null) {
                throw new InvalidMessage("option `$name` must be true or false, " . get_debug_type($value) . ' given');
            }
        }
        if (isset($options['id']) && (!is_string($options['id']) || $options['id'] === '' || strlen($options['id']) > 128)) {
            throw new InvalidMessage('option `id` must be a string of 1 to 128 bytes');
        }
        if (isset($options['ttl_ms']) || isset($options['app'])) {
            throw new InvalidMessage('options `ttl_ms` and `app` need the extension');
        }

        return $options;
    }

    /** @return list<string> those that are socket ids; they come from clients, so a wrong one excludes nobody */
    private static function socketIds(mixed $except): array
    {
        $valid = array_filter(is_array($except) ? array_values($except) : [$except], fn ($id) => is_string($id) && SocketId::isValid($id));

        return array_slice(array_values($valid), 0, self::MAX_EXCEPT);
    }
}
