<?php

declare(strict_types=1);

namespace App\Exceptions;

use Throwable;

class Handler extends \Illuminate\Foundation\Exceptions\Handler
{
    /** @var list<Throwable> */
    public static array $reported = [];

    public function report(Throwable $e)
    {
        self::$reported[] = $e;
        file_put_contents(base_path('reported'), $e->getMessage() . "\n", FILE_APPEND);
    }
}
